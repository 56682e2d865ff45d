"""BibTeX of the papers that a report rests on; only those that were used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isoflop.show.figures import Study


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv.

    Attributes:
        key: to cite it by.
        authors: as BibTeX wants them, "Last, First" joined by " and ".
        title: with the capitals that must stay in braces.
        year: of the first version.
        eprint: arXiv number.
        subject: arXiv's primary class.
    """

    key: str
    authors: str
    title: str
    year: int
    eprint: str
    subject: str

    def bibtex(self) -> str:
        """Its entry."""
        fields = (
            ("author", self.authors),
            ("title", self.title),
            ("year", str(self.year)),
            ("eprint", self.eprint),
            ("archivePrefix", "arXiv"),
            ("primaryClass", self.subject),
            ("url", f"https://arxiv.org/abs/{self.eprint}"),
        )
        lines = ",\n".join(f"  {name:<13} = {{{value}}}" for name, value in fields)
        return f"@misc{{{self.key},\n{lines}\n}}\n"


PAPERS = {
    paper.key: paper
    for paper in (
        Paper(
            "hoffmann2022",
            "Hoffmann, Jordan and Borgeaud, Sebastian and Mensch, Arthur and Buchatskaya, Elena and Cai, Trevor and "
            "Rutherford, Eliza and de Las Casas, Diego and Hendricks, Lisa Anne and Welbl, Johannes and Clark, Aidan "
            "and Hennigan, Tom and Noland, Eric and Millican, Katie and van den Driessche, George and Damoc, Bogdan "
            "and Guy, Aurelia and Osindero, Simon and Simonyan, Karen and Elsen, Erich and Rae, Jack W. and Vinyals, "
            "Oriol and Sifre, Laurent",
            "Training Compute-Optimal Large Language Models",
            2022,
            "2203.15556",
            "cs.CL",
        ),
        Paper(
            "kaplan2020",
            "Kaplan, Jared and McCandlish, Sam and Henighan, Tom and Brown, Tom B. and Chess, Benjamin and Child, "
            "Rewon and Gray, Scott and Radford, Alec and Wu, Jeffrey and Amodei, Dario",
            "Scaling Laws for Neural Language Models",
            2020,
            "2001.08361",
            "cs.LG",
        ),
        Paper(
            "besiroglu2024",
            "Besiroglu, Tamay and Erdil, Ege and Barnett, Matthew and You, Josh",
            "{Chinchilla} Scaling: A replication attempt",
            2024,
            "2404.10102",
            "cs.AI",
        ),
        Paper(
            "porian2024",
            "Porian, Tomer and Wortsman, Mitchell and Jitsev, Jenia and Schmidt, Ludwig and Carmon, Yair",
            "Resolving Discrepancies in Compute-Optimal Scaling of Language Models",
            2024,
            "2406.19146",
            "cs.LG",
        ),
        Paper(
            "deepseek2024",
            "{DeepSeek-AI}",
            "{DeepSeek LLM}: Scaling Open-Source Language Models with Longtermism",
            2024,
            "2401.02954",
            "cs.CL",
        ),
        Paper(
            "czech2026",
            "Czech, Eric and Xu, Zhiwei and Elmatad, Yael and Wang, Yixin and Held, William",
            "Problems with {Chinchilla} Approach 2: Systematic Biases in {IsoFLOP} Parabola Fits",
            2026,
            "2603.22339",
            "cs.LG",
        ),
        Paper(
            "mccandlish2018",
            "McCandlish, Sam and Kaplan, Jared and Amodei, Dario and {OpenAI Dota Team}",
            "An Empirical Model of Large-Batch Training",
            2018,
            "1812.06162",
            "cs.LG",
        ),
        Paper(
            "li2025misfitting",
            "Li, Margaret and Kudugunta, Sneha and Zettlemoyer, Luke",
            "{(Mis)Fitting}: A Survey of Scaling Laws",
            2025,
            "2502.18969",
            "cs.LG",
        ),
    )
}
"""By key. Authors, titles and numbers as arXiv has them."""


def used_by(study: Study, figures: Iterable[str] = ()) -> tuple[str, ...]:
    """Keys of the papers that a study's report rests on.

    Args:
        study: its law, approaches and the published laws beside them.
        figures: keys of the figures that are drawn.
    """
    keys = {"hoffmann2022", "kaplan2020", "li2025misfitting"}  # the form, C = 6·N·D and PF-days, the checklist
    keys |= {"czech2026"} if study.fit is not None else set()
    keys |= {law.name.split("-")[0] for law in study.published} & PAPERS.keys()
    keys |= {"mccandlish2018"} if "batch" in figures else set()
    return tuple(key for key in PAPERS if key in keys)


def bibtex(keys: Iterable[str]) -> str:
    """The entries of these papers, in the order of `PAPERS`, each once.

    Raises:
        KeyError: a key that is none.

    >>> print(bibtex(["besiroglu2024"]).splitlines()[0])
    @misc{besiroglu2024,
    """
    wanted = set(keys)
    if unknown := wanted - PAPERS.keys():
        raise KeyError(f"expected keys of PAPERS, got {', '.join(sorted(unknown))}")
    return "\n".join(paper.bibtex() for key, paper in PAPERS.items() if key in wanted)
