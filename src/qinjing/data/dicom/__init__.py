"""DICOM files, read without believing more than they say."""
