"""Loops beside the jobs, one file each: what nobody decides and somebody has to look after."""
