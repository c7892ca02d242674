"""DeepSpeed as Drivetrain uses it.

all_reduce_check: a program that measures an all-reduce.
backend: the backends of collectives: gloo and NCCL.
batching: division of a global batch over ranks and micro-batches.
collectives: the time that a rank waits in collectives.
deepspeed_config: DeepSpeed's configuration of a job.
deepspeed_internals: all uses of DeepSpeed beyond its public API.
engine: the engine: step, evaluate, predict.
flat_state: a flat buffer of weights with its optimizer state.
late_parameters: parameters without a gradient in some steps.
training_data: the training and eval data of a rank.
"""
