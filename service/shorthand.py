"""parse(): a query in short, from text to the parts of a request.

    a golden retriever                   one text
    2:golden retriever + @b7e0a2f1 - fruit   a text that counts twice, a picture of the index by its id, a text to avoid
    "a dog - on a beach" - @b7e0a2f1     what is in quotation marks is one text

Signs stand between spaces, so that `a t-shirt` and `black-and-white` are texts. The arithmetic is that of rclip
(https://github.com/yurijmikhalevich/rclip).
"""

import re
from typing import Any

_SIGN = re.compile(r"(?:^|(?<=\s))[+-](?=\s)")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?):")
_TERM = re.compile(r'@(?P<id>\S+)|"(?P<quoted>[^"]+)"|(?P<text>[^@"].*|"[^"].*)', re.DOTALL)
_QUOTED = re.compile(r'"[^"]*"')


def parse(query: str) -> list[dict[str, Any]]:
    """Return the parts of a query, as `POST /v1/search` has them.

    Raises:
        ValueError: a sign is followed by nothing.
    """
    # Quotation marks are found first, and what is in them is kept away from the search for signs.
    masked = _QUOTED.sub(lambda found: '"' + "_" * (len(found[0]) - 2) + '"', query)
    signs = list(_SIGN.finditer(masked))
    starts = [(0, "+"), *((sign.end(), sign[0]) for sign in signs)]
    ends = [*(sign.start() for sign in signs), len(query)]
    terms = [(query[start:end].strip(), sign) for (start, sign), end in zip(starts, ends, strict=True)]
    return [_part(term, sign) for number, (term, sign) in enumerate(terms) if term or number or not signs]


def _part(term: str, sign: str) -> dict[str, Any]:
    weighed = _WEIGHT.match(term)
    found = _TERM.fullmatch(term[weighed.end() :].strip() if weighed else term)
    if found is None:
        raise ValueError(
            f"after {weighed[0] if weighed else sign!r} there is nothing: give a text, or @ and the id of a picture"
        )
    weight = float(weighed[1] if weighed else 1) * (-1 if sign == "-" else 1)
    part = {"id": found["id"]} if found["id"] else {"text": found["text"] or found["quoted"]}
    return part if weight == 1 else {**part, "weight": weight}
