"""Tell in words what the gallery's thumbnails show."""

import re

from docutils import nodes

THUMBNAIL = re.compile(r"/images/thumb/sphx_glr_(\w+)_thumb\.\w+$")


def alt_text(env, docname):
    """Give the alternative text of a document's first picture; None if it has no picture."""
    pictures = env.get_doctree(docname).findall(lambda node: getattr(node, "get", {}.get)("alt"))
    return next((picture["alt"] for picture in pictures), None)


def describe_thumbnails(app, doctree, docname):
    """Give each thumbnail the words of its page's first picture, of which it is a copy.

    The picture that stands for "no picture" says nothing, and is left out.
    """
    gallery = app.config.sphinx_gallery_conf["gallery_dirs"]
    for image in list(doctree.findall(nodes.image)):
        if found := THUMBNAIL.search(image["uri"]):
            alt = alt_text(app.env, f"{gallery}/{found[1]}")
            if alt:
                image["alt"] = alt
            else:
                image.parent.remove(image)


def setup(app):
    """Describe them when a document is written."""
    app.connect("doctree-resolved", describe_thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
