"""One spelling per term of a statement, whatever its hyphens, abbreviations and word order.

Carts write the same finding as "Ventricular-paced", "V-paced" and "ventricular paced", as "PVC(s)"
and "ventricular premature complexes", as "Inferior/lateral MI" and "inferolateral infarct". The
patterns of a map and the statements they are looked up in both pass through `spelled`.
"""

import re
from collections.abc import Callable
from functools import lru_cache

_WALLS = {"inf": ("infero", "inferior"), "ant": ("antero", "anterior"),
          "pos": ("postero", "posterior"), "sep": ("septo", "septal"),
          "lat": ("latero", "lateral")}  # fmt: skip
_WALL = r"(?:inf(?:ero|erior)?|ant(?:ero|erior)?|post(?:ero|erior)?|sept(?:o|al)?|lat(?:ero|eral)?)"


def _joined_walls(found: re.Match[str]) -> str:
    named = {name[:3] for name in re.findall(_WALL, found[0])}
    present = [forms for stem, forms in _WALLS.items() if stem in named]
    return "".join(forms[0] for forms in present[:-1]) + present[-1][1]


_BEAT = r"(?: (?:complex(?:es)?|contractions?|beats?|depolari[sz]ations?))"
_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), term)
    for pattern, term in (
        (r"\(s\)|'|\u2019", ""),
        (r"\*\*\*|---", " "),
        # Conduction.
        (r"\batrio[- ]?ventricular\b|\ba\.?[- ]?v\.?(?=[- ](?:\w+[- ])?(?:block|conduct|dissoc|sequ"
         r"|dual|junct|nod))", "av"),
        (r"\bsino[- ]?atrial\b|\bs\.?[- ]?a\.?(?=[- ]block)", "sa"),
        (r"\bi\.?v\.?(?=[- ]conduct)|\bintra[- ]?ventricular\b", "intraventricular"),
        (r"\bivcd\b", "intraventricular conduction delay"),
        (r"\bconduction (?:defect|disturbance|disorder)\b", "conduction delay"),
        (r"\b(?:first|1st|i)[- ]degree\b", "1st degree"),
        (r"\b(?:second|2nd|ii)[- ]degree\b", "2nd degree"),
        (r"\b(?:third|3rd|iii)[- ]degree\b", "3rd degree"),
        (r"(?<=degree )heart(?= block)", "av"),
        (r"\bilbbb\b", "incomplete left bundle branch block"),
        (r"\birbbb\b", "incomplete right bundle branch block"),
        (r"\blbbb\b|\bleft bundle[- ]branch[- ]block\b", "left bundle branch block"),
        (r"\brbbb\b|\bright bundle[- ]branch[- ]block\b", "right bundle branch block"),
        (r"\blafb\b|\blah[bf]?\b|\bleft anterior hemi-?block\b", "left anterior fascicular block"),
        (r"\blpfb\b|\blph[bf]?\b|\bleft posterior hemi-?block\b",
         "left posterior fascicular block"),
        (r"\bpre-excitation\b", "preexcitation"),
        (r"\bwpw\b|\bwol+f+[- ]parkinson[- ]white\b", "wolff parkinson white"),
        # Rhythm.
        (r"\bv[- ](?=pac(?:ed|ing)\b)", "ventricular "),
        (r"\ba[- ](?=pac(?:ed|ing)\b)", "atrial "),
        (r"\ba[- ]?fib(?:rillation)?\b", "atrial fibrillation"),
        (r"\ba[- ]?flut(?:ter)?\b", "atrial flutter"),
        (r"(?:atrial )?(?:fib\w*|flut\w*) ?(?:/|\bor\b|-) ?(?:atrial )?(?:fib\w*|flut\w*)",
         "atrial fibrillation or flutter"),
        (r"\bsv(?=t\b)", "supraventricular "),
        (r"\bsupraventricular t\b", "supraventricular tachycardia"),
        # Premature complexes.
        (rf"\b(?:pvc|vpc|vpb)s?\b|\bpremature ventricular{_BEAT}|\bventricular premature{_BEAT}"
         r"|\bventricular (?:extrasystoles?|ectopics?|ectopy|ectopic beats?)\b",
         "ventricular premature complex"),
        (rf"\b(?:pac|apc|apb)s?\b|\bpremature atrial{_BEAT}|\batrial premature{_BEAT}"
         r"|\batrial (?:extrasystoles?|ectopics?|ectopy|ectopic beats?)\b",
         "atrial premature complex"),
        (rf"\b(?:psvc|svpb)s?\b|\bpremature supraventricular{_BEAT}"
         rf"|\bsupraventricular premature{_BEAT}|\bsupraventricular extrasystoles?\b",
         "supraventricular premature complex"),
        # Infarcts, hypertrophy and the rest.
        (r"\b(?:myocardial )?infarct(?:ion)?s?\b|\bmi\b", "infarct"),
        (r"\bwall (?=infarct)", ""),
        (rf"\b{_WALL}(?:(?: ?[/,&-] ?| and | )?(?:and )?{_WALL})+(?= (?:infarct|injury)\b)",
         _joined_walls),
        (r"\bst[- ]elevation infarct\b", "stemi"),
        (r"\blvh\b", "left ventricular hypertrophy"),
        (r"\brvh\b", "right ventricular hypertrophy"),
        (r"\bbi-(?=atrial|ventricular)", "bi"),
        (r"\bnon-?(?=specific)", "non"),
        (r"(?<=\w)[-/](?=\w)", " "),
        (r"\s+", " "),
    )
)  # fmt: skip


@lru_cache(maxsize=65_536)
def spelled(text: str) -> str:
    """Return the text in lower case with one spelling per term."""
    text = text.lower()
    for pattern, term in _RULES:
        text = pattern.sub(term, text)
    return text.strip(" .,;:-")
