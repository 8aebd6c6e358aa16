"""Scores folders of CT volumes, whoever made them; knows files and anatomy, never a model."""
