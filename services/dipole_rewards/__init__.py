"""Reward services: one FastAPI app for every reward, and the rewards. What a reward is made of is exported here."""

from dipole_rewards.reward import BatchedReward, Golden, Reward, RewardFault, Scores

__all__ = ["BatchedReward", "Golden", "Reward", "RewardFault", "Scores"]
