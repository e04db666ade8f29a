"""Published findings, reproduced in form: a file, a command and a page each."""
