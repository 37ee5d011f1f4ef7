package pglocal

import "syscall"

// endWithParent asks the kernel for the signal of a fast shutdown when the
// forking thread dies.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }
