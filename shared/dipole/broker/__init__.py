"""What travels between a trainer and the rank workers: the Celery app, candidates, runs, claims, answers.

    trainer    put(images) once, a message per reward on the queue `rank.<reward>`, then waits for its run's answers
    rank lane  takes a message, loads the candidates, asks the endpoint, pushes a small JSON answer
    API        image requests, one at a time to whichever sampler is free (image_requests.py)

All of it is in Redis but candidates, which pass through memory where all are on one machine (shared_memory.py).

A message is JSON and carries references only: `sha256:…` of the images and the run's id. Endpoint URLs and keys are in
the run's record, which is deleted with the run. Every key but the queues expires. Truth lives elsewhere: whatever is
lost here (a message, an answer, all of Redis) is asked again by the trainer, which knows what is missing.
"""
