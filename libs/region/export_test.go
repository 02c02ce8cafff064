package region

// WithStep returns options whose hook is called before each store that another process may see.
func WithStep(o Options, step func(point string)) Options {
	o.step = step
	return o
}

// FindIn, PlaceIn are Find and Place with another directory for /dev/shm.
var FindIn, PlaceIn = find, place
