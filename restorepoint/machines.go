package restorepoint

import "path"

// separateConfigs gives machines of one name whose configurations lie in one
// folder names of their own: that of the configuration is added. Configurations
// whose names differ in a date only, and those that have a disk in common, are one
// machine's: copies of its description that were made over time.
func (s *Source) separateConfigs(states []diskState) {
	type folder struct {
		machine, dir string
		scope        *scope
	}
	children := childrenOf(states)
	folders := make(map[folder]map[string][]string) // configuration -> what it is known by
	for i := range states {
		st := &states[i]
		if st.config == "" {
			continue
		}
		k := folder{st.machine, path.Dir(st.config), st.scope}
		if folders[k] == nil {
			folders[k] = make(map[string][]string)
		}
		marks := folders[k][st.config]
		if marks == nil {
			marks = []string{"config\x00" + s.configStem(st.config)}
		}
		folders[k][st.config] = append(marks, st.marks(children)...)
	}
	type renamed struct{ machine, place, stem string }
	names := make(map[renamed]string)
	distinct := make(map[folder]map[string]string)
	for k, configs := range folders {
		distinct[k] = s.distinctConfigs(configs)
	}
	for i := range states {
		st := &states[i]
		if title := distinct[folder{st.machine, path.Dir(st.config), st.scope}][st.config]; title != "" {
			names[renamed{st.machine, st.place, s.configStem(st.config)}] = title
		}
	}
	// In every scope: a machine keeps its name when another comes or goes.
	for i := range states {
		st := &states[i]
		if st.config == "" {
			continue
		}
		if stem := names[renamed{st.machine, st.place, s.configStem(st.config)}]; stem != "" {
			st.machine += "-" + stem
		}
	}
}

// configStem is the name of a configuration without date and extension.
func (s *Source) configStem(config string) string {
	name := path.Base(config)
	_, stem, _, _ := splitName(name[:len(name)-len(path.Ext(name))], "", s.opt.Location)
	return stem
}

// childrenOf counts the images that are based on one.
func childrenOf(states []diskState) map[*imageFile]int {
	children := make(map[*imageFile]int)
	seen := make(map[*imageFile]bool)
	for i := range states {
		for f := states[i].image; f != nil && !seen[f]; f = f.parent {
			seen[f] = true
			children[f.parent]++
		}
	}
	return children
}

// marks are the names of the images that belong to st's machine only: what
// several images are based on may be a template of many machines.
func (st *diskState) marks(children map[*imageFile]int) []string {
	if st.image == nil {
		return []string{"file\x00" + st.file}
	}
	var marks []string
	for _, f := range st.image.chain() {
		if children[f] > 1 {
			break
		}
		marks = append(marks, "file\x00"+f.name)
	}
	return marks
}

// distinctConfigs tells by what name each of a folder's configurations is told
// apart from the others, given what each is known by: those with a mark in common,
// directly or by way of others, are one machine's. It is empty where all are.
func (s *Source) distinctConfigs(configs map[string][]string) map[string]string {
	by := make(map[string][]string) // mark -> configurations
	for c, marks := range configs {
		for _, m := range marks {
			by[m] = append(by[m], c)
		}
	}
	titles := make(map[string]string, len(configs))
	machines := 0
	for _, first := range sortedNames(configs) {
		if _, ok := titles[first]; ok {
			continue
		}
		machines++
		title := s.configStem(first)
		titles[first] = title
		for todo := []string{first}; len(todo) > 0; {
			c := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			for _, m := range configs[c] {
				for _, o := range by[m] {
					if _, ok := titles[o]; !ok {
						titles[o] = title
						todo = append(todo, o)
					}
				}
				delete(by, m)
			}
		}
	}
	if machines < 2 {
		return nil
	}
	return titles
}
