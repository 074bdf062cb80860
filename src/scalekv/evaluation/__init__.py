"""Compare methods: pictures, figures and pages."""
