"""DeepSpeed as Drivetrain uses it.

all_reduce_check: a program that measures an all-reduce.
backend: the backends of collectives: gloo and NCCL.
batching: how a global batch is spread over ranks and micro-batches.
collectives: how long a rank waits in collectives.
deepspeed_config: DeepSpeed's configuration of a job.
deepspeed_internals: everything that is used of DeepSpeed beyond its public API.
engine: the engine: step, evaluate, predict.
flat_state: a flat buffer of weights with its optimizer state.
training_data: the data that a rank trains and is evaluated on.
"""
