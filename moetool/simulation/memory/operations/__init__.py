"""Operations whose memory is recorded; each kind of call is worked out once."""
