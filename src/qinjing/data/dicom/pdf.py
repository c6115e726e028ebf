"""A PDF document as a DICOM object of a study.

Source: DICOM PS3.3, A.45.1 (Encapsulated PDF), C.24.2; PS3.16, CID 7020 (document titles).
"""

from __future__ import annotations

from pathlib import Path

from qinjing.data.dicom.derived import Maker, coded, finish, new_file, quiet, references, save, uids
from qinjing.data.dicom.series import DicomVolume, Source
from qinjing.errors import FormatError

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.104.1"


class _Title:
    value, scheme, meaning = "18748-4", "LN", "Diagnostic imaging report"


def write_pdf_object(
    path: str | Path, pdf: bytes, source: DicomVolume, *, title: str, maker: Maker | None = None,
    about: tuple[Source, ...] = (),
) -> Path:  # fmt: skip
    """Write a PDF into the study of a series.

    Args:
        path: of the DICOM file.
        pdf: the document.
        source: the series that it tells of.
        title: of the document, 64 letters or fewer.
        maker: who makes it.
        about: instances that it tells of, the segmentation for one.

    Raises:
        ConfigError: pydicom is not installed.
        FormatError: no PDF; or the source's first file cannot be read.
    """
    if not pdf.startswith(b"%PDF-"):
        raise FormatError("document", "a PDF", "another file")
    maker = maker or Maker()
    draw = uids(maker, source, "pdf")
    with quiet():
        file = new_file(SOP_CLASS, "DOC", source, maker, draw)
        file.ConversionType, file.BurnedInAnnotation = "WSD", "YES"
        file.ContentDate = file.ContentTime = ""
        file.AcquisitionDateTime = None
        file.DocumentTitle = title
        file.ConceptNameCodeSequence = [coded(_Title)]
        if about:
            file.SourceInstanceSequence = references(about)
        file.MIMETypeOfEncapsulatedDocument = "application/pdf"
        file.EncapsulatedDocumentLength = len(pdf)
        file.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
        finish(file, maker, draw)
    return save(file, path)
