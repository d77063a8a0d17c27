"""Secrets out of text that leaves the process: reports, logs, messages, what is printed."""

import re
from typing import Any

HIDDEN = "REDACTED"
_LONG = 1_000
"""Characters of a user or a secret at most: each place of a text is then tried in bounded time."""
_SECRET = "key|secret|token|pass|pwd|sig|cred|auth|sas"
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE if ignore_case else 0), with_text)
    for pattern, with_text, ignore_case in (
        # user:secret@ in a URI; nobody may have quoted the "/" or "@" in the secret
        (
            rf"""(://)[^\s/@:'"]{{1,{_LONG}}}:[^\s'"<>]{{0,{_LONG}}}@""",
            rf"\1{HIDDEN}@",
            False,
        ),
        # a token alone; what stands there in Azure's and Hadoop's is a container, a host
        (
            rf"""(?<!abfs)(?<!abfss)(?<!wasb)(?<!wasbs)(?<!hdfs)(://)[^\s/@'"]{{0,{_LONG}}}@""",
            rf"\1{HIDDEN}@",
            False,
        ),
        # the same where a file system has taken the scheme away
        (
            rf"""(?<![^\s/@:'"])[^\s/@:'"]{{1,{_LONG}}}:[^\s/@'"]{{1,{_LONG}}}@(?=[\w.-])""",
            f"{HIDDEN}@",
            False,
        ),
        # the same cut off at the "/" of a secret: what follows a ":" is no port
        (
            rf"""(://)[^\s/@:'"]{{1,{_LONG}}}:(?!\d+(?:\D|$))[^\s/'",;]*[^\s/'",;:]""",
            rf"\1{HIDDEN}",
            False,
        ),
        # options of a URI; ";" as in HTML's &amp;
        (
            rf"""([?&;#](?=[\w.-]{{0,100}}?(?:{_SECRET}))[\w.-]{{1,200}})=[^&\s'"<>]*""",
            rf"\1={HIDDEN}",
            True,
        ),
        # variables of an environment
        (r"\b([A-Z][A-Z0-9_]{0,50}_(?:KEY|SECRET|TOKEN|PASSWORD))=\S+", rf"\1={HIDDEN}", False),
        # tokens of the Hugging Face Hub, key ids of AWS
        (
            r"\bhf_[A-Za-z0-9]{20,}|\bhf_(?:oauth|jwt)_[\w.-]{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            HIDDEN,
            False,
        ),
    )
]


def redact(text: str) -> str:
    """Return a text with the secrets of its URIs, and tokens, replaced by one word."""
    for pattern, with_text in _PATTERNS:
        text = pattern.sub(with_text, text)
    return text


def redacted(value: Any) -> Any:
    """Return a JSON value with all strings in it redacted, names of keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redacted(key): redacted(its) for key, its in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(its) for its in value]
    return value
