"""Operations on packed tokens: one plain definition each, and faster ways to compute it."""
