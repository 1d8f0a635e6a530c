"""The states of a run and what leads from one to another."""

# Of docs/remote.md; the last column is what `Run.to` permits.
TABLE = """\
| state | what is so | what costs | next |
|---|---|---|---|
| planned | no machine was asked for yet, or none was given | nothing | asked, there, removed |
| asked | EC2 was asked for the machines; its answer may have been lost | perhaps the machines | \
there, planned, lost, removed |
| there | the machines are known | the machines | sent, lost, removed |
| sent | code and data are on every machine, verified | the machines | there, built, lost, removed |
| built | every machine has its environment | the machines | there, started, lost, removed |
| started | the job was started; it runs or has ended | the machines | there, built, lost, removed |
| lost | the machines are gone; their first volume may be kept | the volume | asked, removed |
| removed | nothing is left but what was fetched, or is in the bucket | the bucket | asked, there |
"""
_ROWS = [row.strip("| ").split(" | ") for row in TABLE.splitlines()[2:]]
STATES: dict[str, list[str]] = {row[0]: row[-1].split(", ") for row in _ROWS}
"""The states that may come next, by state."""
