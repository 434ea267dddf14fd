"""One file with the page, all of its numbers and Bokeh's script: it needs neither Python nor a network."""

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.resources import INLINE

from sims.explore import model, page
from sims.explore.config import Config


def html(config: Config) -> str:
    """The file."""
    made = page.build(config, model.tables(config.at, config.masking, config.grid))
    doc = Document()
    made.add_to(doc)
    return file_html(doc, INLINE, page.TITLE, template=page.TEMPLATE, template_variables=page.variables(made.fixed))
