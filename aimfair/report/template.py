"""Pages from the templates in this folder: every text is escaped, and what is not defined is an error."""

from importlib.resources import files

import jinja2
from markupsafe import Markup

from aimfair.base.progress import duration
from aimfair.report import samples, wording


def template(name: str) -> jinja2.Template:
    """The template of this file name, with the filters of all pages and the style as ``style``."""
    page = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {
        "percent": wording.percent,
        "percents": wording.percents,
        "spread": wording.spread,
        "points": wording.points,
        "between": wording.between,
        "duration": duration,
        "data_uri": samples.data_uri,
    }
    page.globals["style"] = Markup(_source("page.css"))
    return page.get_template(name)


def _source(name: str) -> str:
    return files("aimfair.report").joinpath(name).read_text(encoding="utf-8")
