"""Words that prompts and captions share."""


def with_article(words: str) -> str:
    """The words after "a", or "an" where they begin with a vowel's letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
