"""What a job will take, before any weight is there: its update runs on tensors that have a shape and no memory.

    plan = plan_job(parse_job(body), models_dir=Path(".dipole/models"), devices=[find_device("rtx-4090")])

`architectures.py` has the published networks, `fake_models.py` makes a job's networks of fake tensors, `update_cost.py`
runs one update on them and counts, `job_plan.py` turns the counts into memory, hours and calls on a device of
`devices.py`, which `plans.py` names.
"""
