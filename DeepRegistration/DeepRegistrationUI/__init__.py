"""The Slicer side shared by the modules of DeepRegistration: the bridge to the scene, jobs, views and panels."""
