"""The drill: takes each part of a system away in turn, and writes down what degrades how.

`probes` reads what is asked, `answers` says in words what came of it, `course` takes one part away
in one way, and `table` writes and compares the pages. All but `simulated` and `live` are the same
for a system in virtual time and for one that runs.
"""

from synchromesh.drill.probes import Probe, Probes, read_probes

__all__ = ["Probe", "Probes", "read_probes"]
