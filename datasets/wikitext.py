"""Text in the tokenised form in which WikiText is published, as people write it.

WikiText (Merity et al. 2016, "Pointer Sentinel Mixture Models") puts spaces around every mark of
punctuation, writes the hyphen, the comma and the point inside of words and numbers as @-@, @,@ and
@.@, a heading's = apart, and a space at both ends of each line.
"""

import re

_INSIDE = {"@-@": "-", "@,@": ",", "@.@": "."}
_TO_THE_LEFT = {",", ".", ";", ":", "!", "?", ")", "]", "}",
                "'s", "'t", "'re", "'ve", "'ll", "'d", "'m"}
_TO_THE_RIGHT = {"(", "[", "{"}
_BETWEEN = {"°"}
_HEADING = re.compile(r"(=(?: =)+) (.+) \1")


def detokenize(text):
    """The text without the spaces and signs of the tokenised form; other text stays as it is.

    What stands alone between spaces is joined to its neighbours: marks that end something to the
    left, opening brackets to the right, quotation marks to the right and to the left by turns in
    each line. So text that never sets a mark alone is not changed, and the result of this never is.
    """
    return "\n".join(map(_line, text.split("\n")))


def _line(line):
    """A line, as `detokenize`."""
    if line == " ":
        return ""
    if re.fullmatch(r" \S(?:.*\S)? ", line):
        line = line[1:-1]
    heading = _HEADING.fullmatch(line)
    if heading:
        marks = heading[1].replace(" ", "")
        return f"{marks} {_line(heading[2])} {marks}"
    if not re.search(r"@[-,.]@|(?:^| )\W", line):
        return line  # as most lines of ordinary text
    words, glued, open_marks = [], True, set()
    for word in line.split(" "):
        left = right = False
        behind = bool(words and words[-1])  # there is something to join it to
        if word in _INSIDE and behind:
            word, left, right = _INSIDE[word], True, True
        elif word in _BETWEEN:
            left = right = True
        elif word in _TO_THE_LEFT:
            left = True
        elif word in _TO_THE_RIGHT:
            right = True
        elif word in ('"', "'"):
            # An apostrophe behind an s, with no quotation open, is that of a plural's genitive.
            left = word in open_marks or (word == "'" and behind and words[-1].endswith("s"))
            right = not left
            (open_marks.discard if left else open_marks.add)(word)
        if not glued and not (left and behind):
            words.append(" ")
        words.append(word)
        glued = right
    return "".join(words)
