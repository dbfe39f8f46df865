"""Packaging, read from settings.ini so that every fact stands in one place."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
config = ConfigParser()
config.read(root / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
dev = cfg["dev_requirements"].split()


class BuildWithCourse(build_py):
    """Put chapters and results into the wheel, for `metadropout notebooks`.

    In an editable install they are at hand."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for part in ("nbs", "results"):
                target = Path(self.build_lib) / cfg["lib_name"] / "course" / part
                shutil.copytree(
                    root / part,
                    target,
                    ignore=shutil.ignore_patterns(".*", "_*"),
                    dirs_exist_ok=True,
                )


setup(
    cmdclass={"build_py": BuildWithCourse},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=find_packages(include=[cfg["lib_name"], f"{cfg['lib_name']}.*"]),
    package_data={cfg["lib_name"]: ["weights/*/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": dev, "docs": dev + cfg["docs_requirements"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],  # [source] links
    },
)
