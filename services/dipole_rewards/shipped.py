"""The rewards that come with Dipole, by the short names that `dipole rewards serve NAME` and DIPOLE_REWARD take."""

from __future__ import annotations

SHIPPED_REWARDS = {
    "aesthetic": "dipole_rewards.rewards.aesthetic:Aesthetic",
    "clip": "dipole_rewards.rewards.clip:Clip",
    "colourfulness": "dipole_rewards.rewards.colourfulness:Colourfulness",
    "geneval": "dipole_rewards.rewards.geneval:GenEval",
    "hpsv2": "dipole_rewards.rewards.hpsv2:HPSv2",
    "hpsv3": "dipole_rewards.rewards.hpsv3:HPSv3",
    "imagereward": "dipole_rewards.rewards.imagereward:ImageReward",
    "judge": "dipole_rewards.rewards.judge:Judge",
    "ocr": "dipole_rewards.rewards.ocr:Ocr",
    "pickscore": "dipole_rewards.rewards.pickscore:PickScore",
    "safe": "dipole_rewards.rewards.safe:Safe",
    "shapes": "dipole_rewards.rewards.shapes:Shapes",
    "style": "dipole_rewards.rewards.style:Style",
}
