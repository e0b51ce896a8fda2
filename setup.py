"""Installs the project; pyproject.toml says what it is."""

from setuptools import setup

setup()
