package rdiff

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// aclEntry is an entry of a POSIX ACL.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// aclNames finds the ids that names in ACLs stand for. An ACL has a name wherever
// there was one, and no number then.
type aclNames struct {
	owners   *owners
	recorded bool              // numbers as they were at the source count, not this host's
	users    map[string]uint32 // as the metadata record them
	groups   map[string]uint32
	lost     map[string]bool
}

// aclNames collects what the metadata know of names.
func (t *Tree) aclNames() *aclNames {
	n := &aclNames{owners: &t.owners, recorded: t.owners.numeric, lost: make(map[string]bool)}
	if n.recorded {
		n.users, n.groups = make(map[string]uint32), make(map[string]uint32)
		for _, table := range t.known().tables {
			for _, o := range table.owners {
				n.users[o.uname] = o.uid
				n.groups[o.gname] = o.gid
			}
		}
	}
	return n
}

func (n *aclNames) user(name string) (uint32, bool) {
	if v, ok := n.users[name]; ok {
		return v, true
	}
	v := n.owners.lookup(&n.owners.users, name, userID)
	return v.n, v.ok
}

func (n *aclNames) group(name string) (uint32, bool) {
	if v, ok := n.groups[name]; ok {
		return v, true
	}
	v := n.owners.lookup(&n.owners.groups, name, groupID)
	return v.n, v.ok
}

// dropped returns the names that no id was found for.
func (n *aclNames) dropped() []string {
	var out []string
	for name := range n.lost {
		out = append(out, name)
	}
	slices.Sort(out)
	return out[:min(len(out), 20)]
}

// parseACL reads the lines of one path in the file of ACLs, in the form of getfacl.
// An entry whose name this host doesn't know is left out, as rdiff-backup does.
func parseACL(lines [][]byte, names *aclNames) ([]attribute, error) {
	var access, def []aclEntry
	for _, line := range lines {
		text, _, _ := bytes.Cut(line, []byte("#"))
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			continue
		}
		list := &access
		if rest, ok := bytes.CutPrefix(text, []byte("default:")); ok {
			text, list = rest, &def
		}
		e, ok, err := parseEntry(string(text), names)
		if err != nil {
			return nil, err
		}
		if ok {
			*list = append(*list, e)
		}
	}
	var out []attribute
	// The three entries that every file has are its mode, and no ACL.
	if len(access) > 3 {
		out = append(out, attribute{xattrACLAccess, encodeACL(access)})
	}
	if len(def) > 0 {
		out = append(out, attribute{xattrACLDefault, encodeACL(def)})
	}
	return out, nil
}

// parseEntry reads "user:daemon:rw-". ok is false when its name isn't known.
func parseEntry(text string, names *aclNames) (e aclEntry, ok bool, err error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 || len(parts[2]) != 3 {
		return e, false, errACL([]byte(text))
	}
	for i, c := range "rwx" {
		switch parts[2][i] {
		case byte(c):
			e.perm |= 4 >> i
		case '-':
		default:
			return e, false, errACL([]byte(text))
		}
	}
	e.id = aclUndefinedID
	who := parts[1]
	if who == "" {
		tags := map[string]uint16{"user": aclUserObj, "group": aclGroupObj, "mask": aclMask, "other": aclOther}
		if e.tag = tags[parts[0]]; e.tag == 0 {
			return e, false, errACL([]byte(text))
		}
		return e, true, nil
	}
	find := names.user
	switch parts[0] {
	case "user":
		e.tag = aclUser
	case "group":
		e.tag, find = aclGroup, names.group
	default:
		return e, false, errACL([]byte(text))
	}
	if n, err := strconv.ParseUint(who, 10, 32); err == nil {
		e.id = uint32(n)
		return e, true, nil
	}
	if e.id, ok = find(who); !ok && len(names.lost) < maxNames {
		names.lost[parts[0]+" "+strconv.Quote(who)] = true
	}
	return e, ok, nil
}

// encodeACL gives an ACL the form that the kernel passes on: entries by tag and id.
func encodeACL(list []aclEntry) []byte {
	slices.SortFunc(list, func(a, b aclEntry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return cmpInt(int64(a.id), int64(b.id))
	})
	b := make([]byte, aclHeaderSize, aclHeaderSize+aclEntrySize*len(list))
	binary.LittleEndian.PutUint32(b, aclVersion)
	for _, e := range list {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}
