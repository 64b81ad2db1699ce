"""A reward as a class, which `dipole rewards serve class_reward:Brightness --port 8403` puts behind HTTP."""

import numpy as np

from dipole_rewards.reward import Golden, Reward, Scores


class Brightness(Reward):
    name = "brightness"

    def score(self, *, prompt, images, metadata):
        return Scores([float(image.mean()) / 255 for image in images])

    def golden(self):  # the service is ready when it gives this image this score
        return Golden(prompt="", image=np.full((8, 8, 3), 255, np.uint8), score=1.0)
