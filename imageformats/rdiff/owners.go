package rdiff

import (
	"os/user"
	"strconv"
	"sync"
)

// owners maps recorded owners to ids of this host as rdiff-backup does when it
// restores: by name where this host has that name, else by number; with
// --preserve-numerical-ids always by number.
type owners struct {
	numeric bool
	mu      sync.RWMutex
	users   map[string]id
	groups  map[string]id
}

// id is an id of this host, if there is one.
type id struct {
	n  uint32
	ok bool
}

func (o *owners) uid(n uint32, name string) uint32 {
	if o.numeric || name == "" {
		return n
	}
	if v := o.lookup(&o.users, name, userID); v.ok {
		return v.n
	}
	return n
}

func (o *owners) gid(n uint32, name string) uint32 {
	if o.numeric || name == "" {
		return n
	}
	if v := o.lookup(&o.groups, name, groupID); v.ok {
		return v.n
	}
	return n
}

// maxNames bounds how many names are remembered: a made-up repository may have one
// for each file.
const maxNames = 1 << 16

func (o *owners) lookup(m *map[string]id, name string, find func(string) id) id {
	o.mu.RLock()
	v, known := (*m)[name]
	o.mu.RUnlock()
	if known {
		return v
	}
	v = find(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	if *m == nil || len(*m) >= maxNames {
		*m = make(map[string]id)
	}
	(*m)[name] = v
	return v
}

func userID(name string) id {
	u, err := user.Lookup(name)
	if err != nil {
		return id{}
	}
	return parseID(u.Uid)
}

func groupID(name string) id {
	g, err := user.LookupGroup(name)
	if err != nil {
		return id{}
	}
	return parseID(g.Gid)
}

func parseID(s string) id {
	n, err := strconv.ParseUint(s, 10, 32)
	return id{uint32(n), err == nil}
}
