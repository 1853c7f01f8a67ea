import torch as th

# One thread: on few cores the tests' small matrices lose more to OpenMP's spinning than they gain,
# and the order of summation stays the same from machine to machine.
th.set_num_threads(1)
