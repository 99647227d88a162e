"""The paper's tables and figures but for speed."""
