"""A job tried in one process: the first records, the model, one step, one evaluation. Neither Ray nor DeepSpeed.

job_errors: errors of the user's code as errors of the job.
main: the process.
step: one optimizer step and one evaluation.
"""
