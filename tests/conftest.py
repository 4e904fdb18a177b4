"""Settings every test shares: one thread pool that does not fight, and failures that can be replayed."""

import torch
from hypothesis import settings

# Small problems: more threads only add hand-over time, and an order of summation that varies.
torch.set_num_threads(1)

# No deadline: the first call of an operator compiles and warms up, which is no failure.
# print_blob: a failing property prints the `@reproduce_failure` line that replays it.
settings.register_profile("bilevel", deadline=None, print_blob=True)
settings.load_profile("bilevel")
