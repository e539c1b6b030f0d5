"""The example configs, as data of the package: `importlib.resources.files("dirl.configs")`."""
