"""Operations that replace slow library paths; each is proven equal to the library's result."""
