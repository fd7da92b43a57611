"""Records in, a signed log out: what was written can be re-computed by anyone and changed by no one."""
