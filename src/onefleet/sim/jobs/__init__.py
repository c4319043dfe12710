"""A fast simulator of schedulers: jobs as gangs of devices, no processes, nodes or messages.

`sim.world` simulates the whole product and asks whether its parts keep their rules. This one asks
how good a policy is, on traces of a hundred days, beside the policies of others and beside bounds
that no policy can pass. The terms, as all of it uses them:

* A *job* is a gang: it holds all its devices or none. It *ends* when its progress has reached its
  duration; it makes a millisecond of progress in each millisecond that it holds its devices, but
  for the times below.
* *Waiting*: holds nothing; never started, suspended, or thrown back. *Held* device time is all time
  in which devices were given to a job; *useful* is the part that its duration accounts for, and
  *wasted* the rest: restores, saves, checkpoints, progress that was thrown away.
* *Suspend*: nothing is lost. The devices stay held for `save_ms`, and at the next start for
  `restore_ms` without progress. *Kill*: the devices are free at once, and all progress since the
  last image or periodic checkpoint is lost. A first start costs `start_ms`.
* *Failure*: a node goes out of service for `repair_ms`. Gangs with a member there stop making
  progress at once, hold what they have until that is noticed (`detect_ms`), and are thrown back to
  their last image or periodic checkpoint.
* *Tier*: what is promised of the *device fraction*, duration / (end - arrival). Work takes devices
  only from a lower tier. *Reservation*: devices that a team's premium work gets before anybody
  else; work of others holds them only as long as the team does not want them.
* *Queue* of a job: from its arrival to its first start. *JCT*: from its arrival to its end.
  *Bounded slowdown*: JCT / duration, where durations below ten seconds count as ten, at least 1.

All times are whole milliseconds. A policy is asked once at each moment in which something happened
(`policy.Policy`), sees what a real scheduler can know (`desk.Desk`), and never a duration.
"""

from __future__ import annotations
