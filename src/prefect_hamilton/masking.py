"""Mask secrets in text before it is sent to another program; when in doubt, mask too much.

Since the form of a password is unknown, the places of secrets are masked: before the last @ of a
URL or a word, the query of a URL, and after a name such as `password=`.
"""

import re

MASK = "***"

_NAME = (
    r"(?:passw(?:or)?d|pwd|passphrase|secret|token|credentials?|signature|authorization"
    r"|(?:api|access|account|private|shared|secret)[_-]?key)"
)
_NAMED = re.compile(_NAME + r"""["']?\s*[=:]\s*(?=\S)""", re.IGNORECASE)
_ENDS_IN_NAME = re.compile(_NAME + "$", re.IGNORECASE)
# ASCII: a password may hold other white space.
_URL_QUERY = re.compile(r"(?a)[?#]\S+")
_QUERY = re.compile(r"(?a)\?[^\s=?]*=\S+")
_WORD = re.compile(r"(?a)(\s+)")
_CODE_USER = re.compile(r"""://[^\s"'`]*@""")
_CODE_QUERY = re.compile(r"""(://[^\s"'`?]*)\?[^\s"'`]*=[^\s"'`]+""")


def mask(text: str) -> str:
    """Return `text` with whatever may be a secret replaced by ***."""
    return "\n".join(map(_mask_line, text.split("\n")))


def mask_code(code: str) -> str:
    """Return source code with users, passwords and queries of URLs masked, all else as it is."""
    return _CODE_QUERY.sub(rf"\1?{MASK}", _CODE_USER.sub(f"://{MASK}@", code))


def names_secret(name: object) -> bool:
    """Say whether a name is a secret's, as `password` or `api_key`."""
    return isinstance(name, str) and bool(_ENDS_IN_NAME.search(name))


def holds_secret(text: str) -> bool:
    """Say whether `mask` masks a part of a URL, or a named secret, in `text`."""
    return mask(text) != text and ("://" in text or bool(_NAMED.search(text)))


def _mask_line(line: str) -> str:
    url, named = line.find("://"), _NAMED.search(line)
    if named and (url < 0 or named.start() < url):
        return _mask_words(line[: named.end()]) + MASK
    if url < 0:
        return _QUERY.sub(f"?{MASK}", _mask_words(line))
    return _mask_words(line[:url]) + "://" + _mask_address(line[url + 3 :])


def _mask_address(text: str) -> str:
    """Mask what follows a ://, to the end of the line; other URLs may follow in it."""
    user, at, rest = text.rpartition("@")
    if not at:
        named = _NAMED.search(text)
        masked = _URL_QUERY.sub(f"?{MASK}", text[: named.end()] if named else text)
        return masked + MASK if named and not masked.endswith(MASK) else masked
    if _NAMED.search(text):
        return MASK
    if "?" in user or "#" in user:
        # Either a password with a ? in it, or a query with an @: the rest may be a part of both.
        return MASK + "".join(_WORD.split(rest)[1:])
    return f"{MASK}@" + _URL_QUERY.sub(f"?{MASK}", rest)


def _mask_words(text: str) -> str:
    return "".join(map(_mask_word, _WORD.split(text)))


def _mask_word(word: str) -> str:
    user, at, rest = word.rpartition("@")
    return f"{MASK}@{rest}" if at and user else word
