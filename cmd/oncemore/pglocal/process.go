package pglocal

import (
	"os"
	"os/exec"
	"runtime"
)

// A process is a started server. done is closed when it ended; err is then how.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// launch starts cmd. With bind the kernel ends it when we die.
//
// The kernel watches not our process but the thread that forked, so that thread
// must live as long as the server: a goroutine is locked to it, and waits there.
func launch(cmd *exec.Cmd, bind bool) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		if bind {
			runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
			endWithParent(cmd.SysProcAttr)
		}
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, <-started
}

// signal fails only for a process that has ended, which done tells.
func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }
