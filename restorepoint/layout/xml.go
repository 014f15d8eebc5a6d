package layout

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"

	"yester/internal/ondisk"
)

// element is a piece of an XML file.
type element struct {
	name     string
	attrs    map[string]string
	text     []byte
	children []*element
}

// Bounds of an XML file: a domain has some hundred elements, ten deep.
const maxElements, maxNesting = 1 << 16, 64

// parseXML reads an XML file. Entities beyond the five that XML itself has are an
// error, so that nothing grows; UTF-16, in which Windows writes, is known by its
// byte order mark.
func parseXML(format string, data []byte) (*element, error) {
	if len(data) > MaxText {
		return nil, corrupt(format, "text", "%d bytes, more than %d", len(data), MaxText)
	}
	wide := bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff"))
	if wide {
		var err error
		if data, err = unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewDecoder().Bytes(data); err != nil {
			return nil, corrupt(format, "text", "%v", err)
		}
	}
	dec := xml.NewDecoder(bytes.NewReader(data))
	dec.CharsetReader = func(name string, in io.Reader) (io.Reader, error) {
		if wide {
			return in, nil
		}
		enc, err := htmlindex.Get(name)
		if err != nil {
			return nil, fmt.Errorf("unknown encoding %.40q", name)
		}
		return enc.NewDecoder().Reader(in), nil
	}
	root := &element{}
	open := []*element{root}
	count := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", format, err, ondisk.ErrCorrupt)
		}
		at := open[len(open)-1]
		switch tok := tok.(type) {
		case xml.StartElement:
			if count++; count > maxElements || len(open) > maxNesting {
				return nil, corrupt(format, tok.Name.Local, "more than %d elements, or nested deeper than %d", maxElements, maxNesting)
			}
			e := &element{name: tok.Name.Local, attrs: make(map[string]string, len(tok.Attr))}
			for _, a := range tok.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			at.children = append(at.children, e)
			open = append(open, e)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			at.text = append(at.text, tok...)
		}
	}
	if len(root.children) != 1 || len(open) != 1 {
		return nil, corrupt(format, "text", "not one element with all others in it")
	}
	return root.children[0], nil
}

// child returns the first child of that name; an empty element when there is none.
func (e *element) child(path ...string) *element {
next:
	for _, name := range path {
		for _, c := range e.children {
			if c.name == name {
				e = c
				continue next
			}
		}
		return &element{}
	}
	return e
}

func (e *element) value() string { return strings.TrimSpace(string(e.text)) }

// Domain is what a machine's description by libvirt says (libvirt.org,
// formatdomain.html).
type Domain struct {
	Name  string
	Disks []Disk
}

// ParseDomain reads a libvirt domain. ok is false for an XML file of another kind.
func ParseDomain(data []byte) (d Domain, ok bool, err error) {
	if !bytes.Contains(data[:min(len(data), 4096)], []byte("<domain")) {
		return d, false, nil
	}
	root, err := parseXML("domain", data)
	if err != nil {
		return d, true, err
	}
	if root.name != "domain" {
		return d, false, nil
	}
	d.Name = root.child("name").value()
	for _, e := range root.child("devices").children {
		if device := e.attrs["device"]; e.name != "disk" || device != "" && device != "disk" {
			continue
		}
		source := e.child("source")
		file := source.attrs["file"]
		if file == "" {
			file = source.attrs["dev"]
		}
		if file == "" {
			continue
		}
		if d.Disks = append(d.Disks, Disk{Node: e.child("target").attrs["dev"], File: file, Field: "disk/source"}); len(d.Disks) > maxDisks {
			return d, true, corrupt("domain", "devices", "more than %d disks", maxDisks)
		}
	}
	return d, true, nil
}
