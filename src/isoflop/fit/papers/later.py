"""Published results since 2023; each constant has its place beside it.

Where only a second source could be read, the note says so as a doubt.
"""

from __future__ import annotations

import math

from isoflop.fit.papers.publication import PowerAllocation, PowerLaw, Published, entry

LATER: tuple[Published, ...] = (
    entry(
        "porian2024",
        "Porian et al. 2024 (arXiv:2406.19146)",
        "figure 1, the tuned result on RefinedWeb",
        "non_embedding_with_head",
        "GPT-NeoX, 50432",
        "5M to 901M parameters, 1.25e16 to 2.56e19 FLOPs of RefinedWeb, context 2048",
        # The exponent is theirs. The prefactor is not printed: ours, the mean of ln N* − .497·ln C over the twelve
        # budgets of their data (config rw/tuned/short/const/standard/val), N* by Akima interpolation like theirs.
        allocation=PowerAllocation(parameters=PowerLaw(0.11824, {"C": 0.497})),
        batch_law=PowerLaw(0.7576, {"N": 0.703}),
        learning_rate_law=PowerLaw(3.7, {"N": -0.36}),
        note="Doubt: the prefactor of N is computed here from their data; batch and rate are from second sources "
        "(at 108M they give 164 sequences of 2048 and .0047, where OLMo-core cites 160 and .0047).",
    ),
    entry(
        "muennighoff2023",
        "Muennighoff et al. 2023 (arXiv:2305.16264)",
        "appendix A, eq. 17, and the notebook's digits",
        "total",
        "GPT-2 BPE, 50257",
        "182 runs on C4, 7M to 8.7B parameters, up to 900B tokens and 1500 epochs",
        "muennighoff",
        # ln A = 6.255414, ln B = 7.3049974, ln E = .6254804, α = β = .3526596; printed as 521, 1488, 1.87, .35
        {
            "E": math.exp(0.6254804),
            "A": math.exp(6.255414),
            "B": math.exp(7.3049974),
            "alpha": 0.3526596,
            "beta": 0.3526596,
            "R_D_star": 15.387756,
            "R_N_star": 5.309743,
        },
        note="R_D*, R_N* are a local optimum of their objective; the data do not identify R_D* (6.6 to 2e9).",
    ),
    entry(
        "schaipp2026",
        "Schaipp 2026 (arXiv:2607.01487)",
        "the fitted optimal batch",
        "unknown",
        None,
        "246 runs of Li et al. 2025, 0.05B to 1B parameters, from 2e9 tokens",
        batch_law=PowerLaw(0.667, {"D": 0.566}),
        note="Doubt: from two second sources that agree; the constants of its law of loss were not found.",
    ),
    entry(
        "gadre2024-c4",
        "Gadre et al. 2024 (arXiv:2403.08540)",
        "the fit of downstream error for training on C4",
        "total",
        "GPT-NeoX, 50432",
        "runs of 11M to 6.9B parameters; mean top-1 error over their 17 tasks",
        "gadre-error",
        {"epsilon": 0.850, "k": 2.08, "gamma": 0.756},
        note="Doubt: constants from a second source. Other data and tasks have others: fit your own runs.",
    ),
    entry(
        "deepseek2024",
        "DeepSeek LLM 2024 (arXiv:2401.02954)",
        "eq. 4 (allocation), eq. 1 (batch, rate)",
        "non_embedding",
        "BBPE, 102400",
        "isoFLOP profiles of eight budgets, 1e17 to 3e20 FLOPs",
        # eq. 4: M = .1715·C^.5243 non-embedding FLOPs per token, D = 5.8316·C^.4757
        allocation=PowerAllocation(PowerLaw(0.1715 / 6, {"C": 0.5243}), PowerLaw(5.8316, {"C": 0.4757})),
        batch_law=PowerLaw(0.2920, {"C": 0.3271}),  # eq. 1
        learning_rate_law=PowerLaw(0.3118, {"C": -0.1250}),  # eq. 1
        note="C = M·D with M the non-embedding FLOPs per token, attention included; N here is M/6, more than the "
        "non-embedding parameters by attention's share.",
    ),
    entry(
        "llama3-2024",
        "Llama 3 2024 (arXiv:2407.21783)",
        "section 3.2.1 (printed constants)",
        "unknown",
        "Llama 3, 128k",
        "isoFLOP profiles of 40M to 16B parameters, 6e18 to 1e22 FLOPs",
        allocation=PowerAllocation(tokens=PowerLaw(0.29, {"C": 0.53})),
        stated=((3.8e25, 402e9, 16.55e12),),
        note="Doubt: the printed constants give 10.5T tokens at 3.8e25 FLOPs where the paper states 16.55T, more than "
        "rounding explains; -anchored passes through its statement.",
    ),
    entry(
        "llama3-2024-anchored",
        "Llama 3 2024 (arXiv:2407.21783)",
        "section 3.2.1, the exponent from its extrapolation",
        "unknown",
        "Llama 3, 128k",
        "isoFLOP profiles of 40M to 16B parameters, 6e18 to 1e22 FLOPs",
        # .5378 = ln(16.55e12/.29)/ln(3.8e25): printed as .53
        allocation=PowerAllocation(tokens=PowerLaw(0.29, {"C": math.log(16.55e12 / 0.29) / math.log(3.8e25)})),
        stated=((3.8e25, 402e9, 16.55e12),),
        note="Ours: A = .29 as printed and the exponent, .5378, at which 3.8e25 FLOPs give the stated 16.55T tokens. "
        "N = C/6D is then 383B; the stated 402B is no C/6D.",
    ),
    entry(
        "steplaw2025",
        "Li et al. 2025, Step Law (arXiv:2503.04715)",
        "the fitted law",
        "non_embedding",
        None,
        "59M to 1B non-embedding parameters, to 100B tokens; AdamW, 2000 steps of warm-up, cosine to a fixed last rate",
        batch_law=PowerLaw(0.58, {"D": 0.571}),
        learning_rate_law=PowerLaw(1.79, {"N": -0.713, "D": 0.307}),
        note="The rate grows with D under that schedule; others need not agree.",
    ),
)
