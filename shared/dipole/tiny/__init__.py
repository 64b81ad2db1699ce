"""The tiny world: Dipole's embedded default and test bed. Coloured shapes, prompts in GenEval's six categories."""
