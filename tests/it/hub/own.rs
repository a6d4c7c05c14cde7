//! The fake Hub itself: that it answers as the Hub does, and checks what the Hub checks.
