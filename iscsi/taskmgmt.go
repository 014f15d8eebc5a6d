package iscsi

import (
	"yester/iscsi/pdu"
)

// abort makes a task one that sends nothing more, and tells it to stop.
func (c *conn) abort(t *task) {
	c.outMu.Lock()
	if !t.gone {
		t.gone = true
		if t.counted {
			c.outstanding.Add(-1)
		}
	}
	c.outMu.Unlock()
	t.cancel()
	c.tasksMu.Lock()
	if c.tasks[t.itt] == t {
		delete(c.tasks, t.itt)
	}
	c.tasksMu.Unlock()
}

// abortTasks aborts the tasks that which chooses.
func (c *conn) abortTasks(which func(*task) bool) {
	c.tasksMu.Lock()
	var list []*task
	for _, t := range c.tasks {
		if which(t) {
			list = append(list, t)
		}
	}
	c.tasksMu.Unlock()
	for _, t := range list {
		c.abort(t)
	}
}

// peers returns the sessions of the same target, this one included.
func (c *conn) peers() (out []*conn) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	return c.srv.connsOf(c.target.Load())
}

// taskRequest carries out a task management function. RFC 7143 sections 11.5, 11.6.
// Tasks that READs from the page cache answer at once are never found here: they
// were done before the request was read.
func (c *conn) taskRequest(h *pdu.Header) error {
	response := byte(pdu.TaskDone)
	var after error
	function := h.Flags() &^ pdu.FlagFinal
	sameLUN := func(t *task) bool { return t.lun == h.LUN() }
	needsLUN := function == pdu.TaskAbortSet || function == pdu.TaskClearSet || function == pdu.TaskLUNReset
	switch {
	case needsLUN && !c.nexus.HasLUN(h.LUN()):
		response = pdu.TaskNoLUN
	case function == pdu.TaskAbort:
		c.tasksMu.Lock()
		t := c.tasks[h.RefTag()]
		c.tasksMu.Unlock()
		if t == nil || t.lun != h.LUN() {
			response = pdu.TaskNotFound
			break
		}
		c.abort(t)
	case function == pdu.TaskAbortSet:
		c.abortTasks(sameLUN)
	case function == pdu.TaskClearSet:
		for _, p := range c.peers() {
			p.abortTasks(sameLUN)
		}
	case function == pdu.TaskLUNReset:
		for _, p := range c.peers() {
			p.abortTasks(sameLUN)
		}
		c.nexus.Reset(h.LUN())
	case function == pdu.TaskWarmReset, function == pdu.TaskColdReset:
		for _, p := range c.peers() {
			p.abortTasks(func(*task) bool { return true })
		}
		c.nexus.ResetAll()
		if function == pdu.TaskColdReset {
			for _, p := range c.peers() {
				if p != c {
					p.fail(errColdReset)
				}
			}
			after = errColdReset
		}
	case function == pdu.TaskReassign:
		response = pdu.TaskNotReassign
	default:
		response = pdu.TaskNotSupported
	}
	o := c.newPDU(pdu.OpTaskResp, pdu.FlagFinal)
	r := o.header()
	r.SetResponse(response, 0)
	r.SetITT(h.ITT())
	o.status = true
	c.push(nil, o)
	return after
}
