"""Words that prompts and captions share."""


def with_article(words: str) -> str:
    """The words preceded by "a", or by "an" if they begin with a vowel letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
