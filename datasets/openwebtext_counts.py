"""What came in held against what went out: conservation, the report and the summary."""

import json

from configs.errors import UserError

REPORT_FORMAT = 1
NAMED = 10_000  # problems of a kind that are named in the report; the rest are counted
ZEROS = ("documents", "kept", "too_short", "duplicates", "other_responses", "document_bytes",
         "text_bytes", "with_url", "unreadable", "too_large")


class Counts:
    """Counts of documents; `state` goes into checkpoints.

    Args:
        skip: whether what is unreadable is left out and not refused.
        state: `state` of an earlier run.
    """

    def __init__(self, skip, state=None):
        self._skip = skip
        self.state = state or {**dict.fromkeys(ZEROS, 0),
                               "names": {"unreadable": [], "too_large": []}}

    def kept(self, document, new):
        """Counts a document that is long enough; returns `new`, whether it is no duplicate."""
        self.state["kept" if new else "duplicates"] += 1
        if new:
            self.state["text_bytes"] += document.size
            self.state["with_url"] += document.url is not None
        return new

    def add(self, texts):
        """Adds the rest of openwebtext_text.Texts.

        Raises:
            UserError: something is unreadable and not to be skipped.
        """
        self.state["documents"] += texts.count
        self.state["document_bytes"] += texts.size
        self.state["too_short"] += texts.too_short
        self.state["other_responses"] += texts.other
        for kind, line in texts.problems:
            if kind == "unreadable" and not self._skip:
                raise UserError(f"{line}; mend or remove it, or skip such inputs (--on_error skip)")
            kind = kind.replace(" ", "_")
            self.state[kind] += 1
            if len(self.state["names"][kind]) < NAMED:
                self.state["names"][kind].append(line)

    def check(self, shards):
        """Refuses a run without documents.

        Raises:
            UserError: no document is left.
            RuntimeError: documents were lost, a defect of this program.
        """
        state = self.state
        written = sum(shard["documents"] for shard in shards)
        left_out = state["too_short"] + state["duplicates"]
        if written != state["kept"] or written + left_out != state["documents"]:
            raise RuntimeError(f"documents were lost: {state['documents']} in, {written} out, "
                               f"{left_out} left out")
        if not written:
            raise UserError(f"no document is left: {self.summary()}; check --input and "
                            "--minimum_size")

    def report(self, name, stored, shards):
        """The report, JSON; `stored` is the bytes of the inputs as stored."""
        state = dict(self.state)
        names = state.pop("names")
        written = sum(shard["bytes"] for shard in shards)
        return json.dumps({"format": REPORT_FORMAT, "name": name, "input_bytes": stored, **state,
                           "output_bytes": written, "named": names, "shards": shards},
                          indent=1, ensure_ascii=False) + "\n"

    def summary(self):
        """One line for people."""
        state = self.state
        return (f"{state['documents']:,} documents in ({state['document_bytes']:,} bytes) = "
                f"{state['kept']:,} kept ({state['text_bytes']:,} bytes of text) + "
                f"{state['too_short']:,} too short + {state['duplicates']:,} duplicates; besides "
                f"{state['too_large']:,} too large, {state['unreadable']:,} unreadable")
