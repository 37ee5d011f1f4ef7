package admin

// For the tests, which live outside so that they use what users use.
var (
	ParseEffect   = parseEffect
	SchemaIndexes = func(sql string) (names, restore []string) {
		for _, i := range schemaIndexes(sql) {
			names, restore = append(names, i.name), append(restore, i.restore)
		}
		return names, restore
	}
	JudgeSetting = func(name, value string) Health {
		for _, r := range rules {
			if r.setting == name {
				state, _ := r.judge(value)
				return state
			}
		}
		panic("no rule for " + name)
	}
)
