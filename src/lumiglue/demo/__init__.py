"""The demo: a web page and an HTTP route that match two photos. Needs `pip install "lumiglue[demo]"`."""
