"""What reward `judge` is made of: a VLM behind any OpenAI-compatible chat endpoint ranks candidates; docs/judge.md.

settings                        which endpoint and model, how it is asked, how often
chat, rate_limiter              one call: what is sent, retried, waited for, and what it used
rubric                          the system message, and the prompt as escaped data
answer_forms                    the forms an answer must have; one that has another is no answer
pointwise, pairwise, listwise   the modes that go by a rubric; `mode` is what all have in common
questions                       the mode that asks what a prompt's metadata wants to know of its images
tournament, bradley_terry       which pairs are judged, and what they say
"""
