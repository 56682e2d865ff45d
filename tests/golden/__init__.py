"""Golden tests: what isoflop says, records, draws and answers, held by value at its public faces.

They import `isoflop`, its trainers' callbacks and its command alone, never an inner module, so that the code behind
the faces can be moved and rewritten: as long as they pass, no number changed.

`values/*.json` hold the values. Rule: **a value changes only in a commit that says why.** To rewrite them:

    ISOFLOP_UPDATE_GOLDEN=1 pytest tests/golden            # all
    ISOFLOP_UPDATE_GOLDEN=1 pytest tests/golden -k plan    # those of some tests
    git diff --stat tests/golden/values                    # read it: is each change one that you meant?

A full update also drops the values that no test asks for any more.

- `clock.py`: a clock that stands still but for an optimizer step, so that no value depends on the machine's speed.
- `runs.py`: scripted runs of tiny models (plain loop, Lightning, Hugging Face).
- `planted.py`: records and tables with a planted law.
- `values.py`: comparison and masking. Floats agree to 1e-6 (trainings, fits, bootstraps: 1e-4), integers exactly,
  what rests on the few real trainings to a tenth;
  numbers in a text to one unit of their last digit; keys may be added to JSON objects, none may go.
"""
